//! `pad`: MMDetection's `Pad` with a fixed size.
//!
//! The image stays in the upper left corner. If nothing follows, the padding is 0 after normalization, as it is where
//! MMDetection pads last. What follows sees the padded image: its padding is black, and a flip moves it.

use fnet_common::Result;
use fnet_config::augment::Pad;

use super::frame::{Augment, Draws, Frame};

impl Augment for Pad {
    type Choice = ();

    fn draw(&self, _: &Frame, _: &mut Draws<'_>) -> Result<()> {
        Ok(())
    }

    fn apply(&self, (): (), frame: &mut Frame) -> bool {
        frame.padding = Some((self.size[0], self.size[1]));
        true
    }
}
