"""How long does it take to fit from many starts at once?"""
