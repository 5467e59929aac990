"""flops-fit: given this much compute, how big should the model be, on how much data, and how sure are we?"""
