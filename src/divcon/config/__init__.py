"""The settings of a run, settings files, and the presets of the papers."""
