"""What fastlstm is measured beside."""
