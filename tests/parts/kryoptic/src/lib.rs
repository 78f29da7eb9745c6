//! Nothing of its own: the package exists to build its dependency `kryoptic`, whose cdylib is the PKCS#11 module.
