"""The work itself, without saying where it runs: shards, labelling, training, commits. Nothing here imports ray."""
