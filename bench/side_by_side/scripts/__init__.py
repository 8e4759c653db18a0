"""What a user of each code base writes to train one student on given weak labels.

The benchmark runs these files, and docs/side_by_side.md counts their lines. Each has a function
``run``: a job (``bench.side_by_side.inputs``) in, P(class 1) of every test row out. They read the
same files of rows and use the public functions of their code base alone.
"""
