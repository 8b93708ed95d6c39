//! `ondine try`.
/// x
#[derive(Debug, clap::Args)]
pub struct Try {}
impl Try {
    pub(super) fn run(self) -> anyhow::Result<()> {
        Ok(())
    }
}
