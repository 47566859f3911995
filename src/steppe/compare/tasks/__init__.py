"""Tasks: what one is, those that come with steppe, and how users' own are found and read."""
