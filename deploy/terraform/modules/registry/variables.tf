variable "name" {
  description = "Name of the repository"
  type        = string
}

variable "kms_key_arn" {
  description = "Key for the images"
  type        = string
}
