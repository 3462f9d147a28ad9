variable "name" {
  description = "Prefix of every name"
  type        = string
}

variable "vpc_id" {
  description = "The VPC"
  type        = string
}

variable "subnet_ids" {
  description = "Three private subnets, a broker in each"
  type        = list(string)
}

variable "client_security_group_id" {
  description = "Security group of what may connect"
  type        = string
}

variable "kafka_version" {
  description = "Version of Apache Kafka, one that MSK offers"
  type        = string
  default     = "3.9.x.kraft"
}

variable "instance_type" {
  description = "Of a broker"
  type        = string
}

variable "volume_gib" {
  description = "Storage of a broker: a week of what comes in, three times, over three brokers, and room"
  type        = number
}

variable "kms_key_arn" {
  description = "Key for data at rest and logs"
  type        = string
}
