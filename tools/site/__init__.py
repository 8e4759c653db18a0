"""The documentation site: pages that mkdocs builds from docs/ and other files."""
