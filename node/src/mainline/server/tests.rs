//! Tests of the server: see the conformance cases for what each query is answered with.
