"""The paper's experiments as a Flower app: `flwr run` finds its two halves here."""

from flower_bfl.paper import app

# Flower looks for assignments, an import would not do.
server_app = app.server_app
client_app = app.client_app
