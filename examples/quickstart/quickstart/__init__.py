"""flower-bfl's quickstart: a Flower app whose edge servers agree by consensus."""
