variable "region" {
  description = "AWS region"
  type        = string
  default     = "eu-central-1"
}

variable "bucket" {
  description = "Name of the lake's bucket, unique in the world"
  type        = string
}

variable "api_cidrs" {
  description = "From where the cluster's API may be reached; empty: from inside the VPC only"
  type        = list(string)
  default     = []
}

variable "mail_to" {
  description = "Who hears when the bill grows"
  type        = list(string)
}
