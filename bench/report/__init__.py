"""Tables and pictures of the documents, written from the committed rows."""
