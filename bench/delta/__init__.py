"""Delta learning on a task of seconds: pairs of two weak generators and controls."""
