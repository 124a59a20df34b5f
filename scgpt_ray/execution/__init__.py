"""Where the steps of a verb run: Ray, and only here."""
