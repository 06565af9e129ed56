"""What a run has shown: the HTML page, the console's table, the model's and the data's cards."""
