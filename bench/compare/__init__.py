"""The developers' benchmark: Corral beside its peers, in one run, on one machine."""
