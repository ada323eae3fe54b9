from setuptools import setup

setup(
    cffi_modules=[
        "precopy/native/build.py:ffibuilder",
        "migrate/kernel/native/build.py:ffibuilder",
    ]
)
