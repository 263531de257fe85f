//! Load generator for Tidegate gateways.

fn main() {
    eprintln!("loadgen: no profile is built yet");
    std::process::exit(1);
}
