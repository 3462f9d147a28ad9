variable "name" {
  description = "Value of the tag `project` on everything"
  type        = string
}

variable "limit_usd" {
  description = "A month"
  type        = number
}

variable "mail_to" {
  description = "Who hears of it"
  type        = list(string)
}
