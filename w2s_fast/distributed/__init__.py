"""The processes of a job: who they are, what they exchange, and what happens when one is lost."""
