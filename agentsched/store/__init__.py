"""What outlives a process: the journal, who is who, and what was learnt, in a database.

Off the hot path: a thread of its own writes what the data plane leaves in a bounded queue. While
the database is away a bounded spool on disk takes its place. Prompts are never stored.
"""
