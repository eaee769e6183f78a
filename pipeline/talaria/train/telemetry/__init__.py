"""What a rank says about itself: console lines, FLOPs, loss spikes, and the watchdog that ends a hang."""
