"""Labels: choosing, purifying and spreading them; where they come from and how far to trust them."""
