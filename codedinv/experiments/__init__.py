"""What the numbers and figures of the documentation are made by."""
