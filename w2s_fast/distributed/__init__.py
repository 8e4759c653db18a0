"""Processes of a job: ranks, collective calls, detection of lost processes, network ports."""
