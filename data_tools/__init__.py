"""What prepare_data.py makes: the offline demo, the real digits, and the rows behind the README's table."""
