variable "name" {
  description = "Prefix of every name"
  type        = string
}

variable "region" {
  description = "AWS region"
  type        = string
}

variable "cidr" {
  description = "Addresses of the VPC, a /16"
  type        = string
}

variable "zones" {
  description = "Availability zones to spread over: MSK wants two or three, Redshift Serverless three"
  type        = number
  default     = 3
}

variable "nat_per_zone" {
  description = "Whether each zone has a NAT gateway of its own"
  type        = bool
}

variable "kms_key_arn" {
  description = "Key for the logs"
  type        = string
}
