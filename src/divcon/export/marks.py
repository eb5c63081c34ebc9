"""What stands in a model card where only a person knows."""

TO_FILL_IN = "TO FILL IN"
