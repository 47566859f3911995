"""Watch a training run while it trains: curvature, stability and step sizes, at a bounded cost."""
