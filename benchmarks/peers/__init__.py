"""The libraries that fastlstm is compared with."""
