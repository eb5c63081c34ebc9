"""Settings: what there is to set, files of settings, and the papers' presets."""
