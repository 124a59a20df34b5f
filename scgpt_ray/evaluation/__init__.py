"""What a run is worth: metrics, plots, and the HTML report."""
