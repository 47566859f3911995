"""The eager engine: plain torch, for any device and layout, and differentiable steps."""
