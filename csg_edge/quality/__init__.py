"""Is an image what its mask, its context and real ultrasound say it should be?"""
