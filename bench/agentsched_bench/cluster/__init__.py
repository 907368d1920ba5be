"""A cluster of real processes under load, while parts of it are killed, stopped and cut off."""
