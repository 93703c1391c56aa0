"""What all methods share: the model that is analysed, runs of its blocks with interventions, and how many
rows run at once."""
