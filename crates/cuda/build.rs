//! Lets what links libtorch here find it at run time.

fn main() {
    oq_torch_link::link();
}
