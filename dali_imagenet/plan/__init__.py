"""Everything random about a batch, drawn before a pixel is touched. numpy only."""
