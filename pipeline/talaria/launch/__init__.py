"""The stage train without torch: starts `accelerate launch` beneath the reaper and says how it ended."""
