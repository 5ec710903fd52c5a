"""Speed and memory as ratios against plain re-creations of what the published trainers do, measured in the same run."""
