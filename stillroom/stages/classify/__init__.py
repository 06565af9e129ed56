"""The stages of a job of choosing among classes, where they are others than those of a job of writing."""
