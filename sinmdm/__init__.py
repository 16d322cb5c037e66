"""sinmdm"""
