"""divcon"""
