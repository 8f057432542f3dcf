"""The paper's experiments as a Flower app: `flwr run` finds its two halves here."""

from flower_bfl.paper.app import client_app as client_app
from flower_bfl.paper.app import server_app as server_app
