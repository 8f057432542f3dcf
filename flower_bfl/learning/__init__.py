"""What devices learn from, and how: data sets, partitions, the paper's CNNs, local training.

Import from the submodules, so that whoever only needs numpy does not load torch::

    from flower_bfl.learning.partition import partition            # numpy
    from flower_bfl.learning.data import Dataset, load             # numpy; torchvision when a set needs it
    from flower_bfl.learning.models import build                   # torch
    from flower_bfl.learning.training import evaluate, train       # torch
"""
