"""The paper's experiments: data, one runner, and what comes of it.

`experiments/*.toml` say which runs there are, what is drawn and what is claimed (`experiment`). A run is
settings and a seed that become rows of numbers; `runs` has its kinds. `runner` makes those that `results`
lacks. `claims` holds the rows against the paper, `picture` and `summary` show them.
"""
