"""flower-bfl's example of a controller in the loop: devices offload data to edge servers."""
