"""What answers a person at the keyboard: a model that is asked, data that are shown, a machine."""
