variable "bucket" {
  description = "Name of the bucket, unique in the world"
  type        = string
}

variable "kms_key_arn" {
  description = "Key for the objects"
  type        = string
}

variable "undo_days" {
  description = "How long a deleted or replaced object can be brought back"
  type        = number
  default     = 30
}
